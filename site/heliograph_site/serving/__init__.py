"""The server process: gateway, forkserver, one isolated worker per slot."""
