"""The conversations that nano learns from: phrasings, turns, composer. Renders nothing."""
