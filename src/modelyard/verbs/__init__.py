"""What a user does: one folder per verb. Verbs meet only through the store and the named edges of tests/test_house.py."""
