"""The registry as a state machine: `Registry.step(event)` returns what is to be done. No I/O."""
