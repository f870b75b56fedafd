"""What every room may use: ranks (`distributed`), the console and metrics (`logging`), keyed random numbers (`seeding`), files
that appear whole (`atomic`, `checksums`, `locks`, `shared`), YAML into dataclasses (`schema`), home folders and threads.

It imports nothing.
"""
