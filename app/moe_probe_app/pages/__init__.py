"""The explorer's pages. Each is a script that also runs alone, which is how the tests run it."""
