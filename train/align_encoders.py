"""Stage 1, encoding-side alignment: media → caption. Trains the input projection.

Usage: python -m nextgpt.train.align_encoders --config train/configs/nano/align_encoders.yaml [key=value ...]
"""

from nextgpt.train.stages import main

if __name__ == "__main__":
    main("align_encoders")
