"""Tables, each also as a picture: `make` of a module gives the numbers, the table and the figure."""
