"""What training steps cost, counted without a GPU or measured on one."""
