"""What a request may use: rules, and two limiters (in process, and on Redis or Valkey) that keep them."""
