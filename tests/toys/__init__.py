"""A kind of media that the package does not know, with its encoder and its decoder, as a program would bring them."""
