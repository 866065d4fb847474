"""Where settings come from: one TOML file, GATEWAY_* variables, flags; and everything that is wrong with them."""
