"""The node: fetches, verifies, activates, proves, serves and rolls back, with or without the hub."""
