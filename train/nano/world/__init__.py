"""The nano world: pictures, sounds, clips, their names and their split. Imports no model."""
