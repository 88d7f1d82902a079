"""What ends an answer whatever it is: the end tokens of the common model families, where they were kept as text."""

END_TOKEN = r"</s>|<\|(?:im_end|endoftext|eot_id|end_of_text|end)\|>|<eos>|<end_of_turn>"
