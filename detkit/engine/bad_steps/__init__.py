"""Steps that go wrong: bad inputs and numbers seen, named, and kept to be run again."""
