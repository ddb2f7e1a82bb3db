"""Find, name, prove and steer the concepts a music generator has learned."""
