"""Answers that outlive their caller's connection: retries get the same answer, broken streams go on."""
