-- id: nothing is kept of what this user has sent and was sent
forget_chats(ARGV[1])
