"""The front doors: each speaks its client's words and leaves every decision to the engine."""
