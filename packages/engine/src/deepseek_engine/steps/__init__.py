"""One step of the engine: computing its batch whatever fails in it, and what is known of it while it runs and after."""
