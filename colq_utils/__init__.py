"""ColQ: quantize a ColQwen3 visual-document retriever and measure what that costs and gains."""
