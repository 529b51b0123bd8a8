-- id: delete everything that this user has sent and received
forget_chats(ARGV[1])
