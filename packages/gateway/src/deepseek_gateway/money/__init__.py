"""Prices, and money as whole numbers: one unit of a currency is 10^9 nano-units."""
