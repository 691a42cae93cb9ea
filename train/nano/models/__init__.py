"""The makers of nano's frozen parts: one file each, and the loop and objective that they share."""
