-- looks -> {id, name, password hash if there is one} of the user with one of them, or nothing
for _, look in ipairs(ARGV) do
    local id = redis.call('HGET', p .. 'names', look)
    if id then
        return {id, redis.call('HGET', p .. 'users', id), redis.call('HGET', p .. 'passwords', id) or nil}
    end
end
