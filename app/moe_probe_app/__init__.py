"""The explorer: a run looked at in a browser. It holds no SQL and no arithmetic; both are moe_probe's."""
