"""deepseek_gateway"""
