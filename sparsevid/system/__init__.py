"""What every room may use: ranks (`distributed`, `store`), the console and metrics (`logging`), keyed random numbers
(`seeding`), files that appear whole (`atomic`, `checksums`, `locks`, `shared`), caches in shards (`shards`), YAML into
dataclasses (`schema`), errors that a user can mend (`errors`), what float32 means (`precision`), copies that nobody waits for
(`transfer`), signs of life between ranks (`heartbeat`), the memory of a process (`resident`), home folders and threads.

It imports nothing.
"""
