"""A vision-language detector of nutrition labels, base against FP8: pictures, model, quantization, engines, report."""
