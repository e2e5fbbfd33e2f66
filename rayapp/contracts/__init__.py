"""What everything agrees on: schemas, configuration, named sizes, hashes. No I/O."""
