"""Data: files → manifest → clips (uint8)."""
