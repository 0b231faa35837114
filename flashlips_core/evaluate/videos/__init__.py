"""Any folder of clips, dubbed with any voices and measured from outside."""
