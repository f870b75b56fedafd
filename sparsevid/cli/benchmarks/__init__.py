"""Actions of `sparsevid benchmark`: one thin module each, with HELP, EXAMPLES, `add_arguments` and `measure`."""
