"""The protocol, the combinators and the pytree helpers that everything else is built on."""
