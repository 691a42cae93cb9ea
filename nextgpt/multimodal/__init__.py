"""The names and manners of transformers' multimodal models: placeholders and features, generation modes, chat templates."""
