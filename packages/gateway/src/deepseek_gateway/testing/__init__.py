"""An engine that follows a script, behind real sockets: for tests of the gateway, and of what stands in front of it."""
