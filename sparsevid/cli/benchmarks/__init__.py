"""`sparsevid benchmark`: one thin module an action, with HELP, EXAMPLES, `add_arguments` and `measure`."""
