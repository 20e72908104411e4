"""Mutants of a module: its source with one expression changed, by the operators of mutmut.

Left out by rule, since no test should tell them from the original: annotations, docstrings, the texts of errors (all
that is in a ``raise``), assertions (they are for the type checker), decorators, the ``strict`` of a ``zip``, and
``device=``, which needs a second device. Of what is outside functions only the module's numbers are changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators

SKIPPED = (cst.Annotation, cst.Raise, cst.Assert, cst.Decorator, cst.Import, cst.ImportFrom)
KEYWORDS = ("strict", "device")


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        path: The file, relative to the repository.
        number: Which of the file's mutants it is.
        lines: The first and the last line of the statement that it is in.
        function: The qualified name of the outermost function around it; empty for a number of the module.
        before: What is changed.
        after: What it becomes.
        source: The source of the whole module.
    """

    path: str
    number: int
    lines: tuple[int, int]
    function: str
    before: str
    after: str
    source: str = field(repr=False)

    @property
    def name(self):
        return f"{self.path}#{self.number}"

    def __str__(self):
        return f"{self.name} (line {self.lines[0]}, {self.function or 'module'}): {self.before}  ->  {self.after}"


def mutants_of(path: str) -> list[Mutant]:
    """All mutants of a file."""
    text = Path(path).read_text()
    wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    visitor = _Visitor(wrapper)
    wrapper.module.visit(visitor)
    starts = [0, *(place + 1 for place, letter in enumerate(text) if letter == "\n")]
    found, seen = [], {text}
    for lines, function, node, other in visitor.changes:
        span = visitor.positions[node]
        first, last = (starts[at.line - 1] + at.column for at in (span.start, span.end))
        after = wrapper.module.code_for_node(other)
        source = text[:first] + after + text[last:]
        if source not in seen:
            seen.add(source)
            found.append(Mutant(path, len(found), lines, function, _line(text[first:last]), _line(after), source))
    return found


def unchanged(mutants: list[Mutant]) -> list[Mutant]:
    """The files of some mutants as they are: what no test may notice."""
    first = {mutant.path: mutant for mutant in reversed(mutants)}
    return [replace(mutant, before="", after="", source=Path(path).read_text()) for path, mutant in first.items()]


def _line(text: str) -> str:
    return " ".join(text.split())


class _Visitor(cst.CSTVisitor):
    def __init__(self, wrapper: MetadataWrapper):
        super().__init__()
        self.changes: list[tuple[tuple[int, int], str, cst.CSTNode, cst.CSTNode]] = []
        self.positions, self._parents = (wrapper.resolve(p) for p in (PositionProvider, ParentNodeProvider))
        self._names: list[str] = []
        self._functions = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, SKIPPED) or _is_skipped(node):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._names += [node.name.value] * (self._functions == 0)
            self._functions += isinstance(node, cst.FunctionDef) or self._functions > 0
        elif self._functions or isinstance(node, cst.BaseNumber):
            self.changes += self._changes(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._functions -= self._functions > 0
            if not self._functions:
                self._names.pop()

    def _changes(self, node: cst.CSTNode) -> Iterator[tuple[tuple[int, int], str, cst.CSTNode, cst.CSTNode]]:
        if not self._functions and self._names:
            return  # numbers in the body of a class: defaults of what is made from it
        statement = around = node
        while not isinstance(statement, cst.BaseSmallStatement | cst.BaseCompoundStatement | cst.Module):
            around, statement = statement, self._parents[statement]
        # Of an `if` the condition alone; of a default the whole function.
        is_head = isinstance(statement, cst.BaseCompoundStatement) and not isinstance(around, cst.Parameters)
        last = around if is_head else statement
        lines = self.positions[statement].start.line, self.positions[last].end.line
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                for other in operator(node):
                    if isinstance(node, cst.Call) and any(_is_skipped(x) for x in set(node.args) - set(other.args)):
                        continue
                    yield lines, ".".join(self._names), node, other


def _is_skipped(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value in KEYWORDS
