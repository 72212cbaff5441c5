"""[IO] The operator API: what commands ask a running hub, as JSON over its unix socket (0600: the hub's own user).

Rule 1: an answer is made of what is committed; whatever changes something commits, then announces, then answers.
Rule 2: an error is `{"error": sentence, "kind": family}`; the client raises the same family again.
Rule 3: what was signed elsewhere is checked here before it counts; no private key ever comes in.
"""
