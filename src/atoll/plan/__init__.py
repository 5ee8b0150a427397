"""Plans: changes as values. `operations` says what can be done, `execute` does it, `observe` says what is done already."""
