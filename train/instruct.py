"""Stage 3, instruction tuning on dialogues: trains the adapter, the projections and the signal rows together.

Usage: python -m nextgpt.train.instruct --config train/configs/nano/instruct.yaml [key=value ...]
"""

from nextgpt.train.stages import main

if __name__ == "__main__":
    main("instruct")
