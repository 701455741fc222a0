"""`python -m moe_probe.cli`."""

from moe_probe.cli.program import main

main()
