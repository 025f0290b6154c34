"""Pictures and questions made by code: what the default model learns from and is judged by."""
