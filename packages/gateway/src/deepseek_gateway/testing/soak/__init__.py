"""Mixed load with faults for as long as you like, and a verdict: `python -m deepseek_gateway.testing.soak`."""
