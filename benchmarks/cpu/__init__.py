"""This project beside llama.cpp, OpenVINO GenAI and transformers, on the same weights and the same processor."""
