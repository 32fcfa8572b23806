"""Tables and figures from result files alone: nothing here imports torch or a simulator."""
