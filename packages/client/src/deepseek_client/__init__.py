"""deepseek_client"""
