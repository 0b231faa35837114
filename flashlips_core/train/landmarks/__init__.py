"""The landmark network's training: pictures, rendered heads, views, and its errors."""
