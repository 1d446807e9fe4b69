"""Before training: the objects that nothing would be learnt from."""
