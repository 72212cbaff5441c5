"""[IO] `heliograph hub`, `release`, `key`, `rollout`, `fleet`: what operators type.

Every command but `hub init` and `hub run` asks a running hub through its API and never opens its files. Keys that sign,
approve or deny are read here, by the operator's process, and never leave it. Data goes to stdout, the rest to
stderr; `--json` prints what the API answered.
"""
