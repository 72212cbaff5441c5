"""Worlds of bad weather in virtual time: a hub, a broker, a road, disks and nodes, from one seed.

The cores are the real ones: the machine's table, belief, trust, vouching, denials, transfer, sender, delta, slots and
objects, outbox, the hub's rollout rules and its counting of records. Replaced are asyncio (`clock`), MQTT (`road`), the
worker processes (`server`), and the two shells that wire all this (`node`, `hub`). `oracle` is what must hold and
`ending` what must have become of it; `operators` and `mishaps` are what befalls a world, `world` is all of it together,
and `mutants` are planted bugs that worlds must find.

`python -m simulator SEED` (with `tests` on the path) prints the trace of a world.
"""
