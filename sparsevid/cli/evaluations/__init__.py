"""Commands of `sparsevid evaluate`, one a module; `arguments` is what they share."""
